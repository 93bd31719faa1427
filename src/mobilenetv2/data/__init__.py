"""Pictures and labels until they are a batch on the device."""
