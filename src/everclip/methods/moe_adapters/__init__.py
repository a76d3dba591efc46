"""MoE-Adapters: the method, its settings, its training passes, and the shape that grows. Nothing is imported here."""
