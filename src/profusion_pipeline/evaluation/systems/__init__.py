"""What is compared: ProFusion and its rivals behind one interface."""
