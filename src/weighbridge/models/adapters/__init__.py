"""LoRA adapters as PEFT saves them: several over one base, chosen row by row of a batch."""
