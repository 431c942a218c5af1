"""The device models of the machines, one file a device: the model and its `State`."""
