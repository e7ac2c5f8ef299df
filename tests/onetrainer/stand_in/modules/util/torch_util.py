def optimizer_to_device_(optimizer, device):
    """What lies on another device stays there: this stand-in has one. A state is asked for, as early as elsewhere."""
    for entry in optimizer.state_dict()["state"].values():
        assert all(getattr(value, "device", device) == device for value in entry.values())
