"""What MoE-Adapters consists of: settings, passes of training, the shape that grows. Nothing is imported here."""
