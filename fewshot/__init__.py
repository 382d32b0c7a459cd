"""Few-shot learning: MAML and its family, CxGrad, TAPL."""
