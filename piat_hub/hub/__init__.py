"""Models as directories and on the Hub: timm's config.json, safetensors weights, a card, nothing else."""
