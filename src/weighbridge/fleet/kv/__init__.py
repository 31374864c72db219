"""What a replica's prefix cache holds, as it says itself: events of vLLM and SGLang, and the blocks they name."""
