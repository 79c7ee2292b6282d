"""Hardware behind one contract, `drivers.base`; never imports the kernel."""
