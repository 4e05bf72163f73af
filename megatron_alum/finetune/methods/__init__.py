"""Fine-tuning with a divergence: a Trainer for alum, smart, freelb and r-drop. No benchmark is known here."""
