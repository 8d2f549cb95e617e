"""Pure maths of policy-gradient captioning: baselines, advantages, losses, diagnostics. No models, no data, no Ray."""
