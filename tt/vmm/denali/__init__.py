"""The Denali machine: devices and boot of the paravirtual architecture in `docs/denali-machine.md`.

Nothing is imported here: `guest_build` must load without tt's dependencies.
"""
