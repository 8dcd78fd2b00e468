"""cctrace: which CPU-GPU crossing holds an LLM engine's decode loop up."""
