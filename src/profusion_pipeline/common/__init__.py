"""What several rooms need: settings, flags, files, and opening a pipeline."""
