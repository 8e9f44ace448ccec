"""From a recipe to a trained student: prompts, rollouts, targets, losses, the loop, the run directory."""
