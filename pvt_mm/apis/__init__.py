"""What the tools call: configs, launching, checks, inference, export and replay."""
