"""Fine-tuning of both networks on a clip's own frames, taught by themselves in its anchor frame (SPRig 4, 5)."""
