"""LoRA and its kin: specs, values, algebra, and the manager that injects them into models."""
