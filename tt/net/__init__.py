"""Networks: what the Ethernet cards of a live machine are connected to.

    card ── cable (`Link`: latency, loss, ...) ── end (`passt`, a stream socket, a capture file, a switch)

Nothing here is part of a machine.  Frames that arrive pass the machine's door as inputs, so a
replay needs no network; `Network` is what a live source (`tt.vmm.live`) asks for them.
"""
