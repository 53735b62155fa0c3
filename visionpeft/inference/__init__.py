"""Pictures from prompts and adapters."""
