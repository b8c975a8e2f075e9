"""Σₙ hₙ, Σₙ hₙ² and ‖hₙ‖² from the same hₙ = Σₜ gₙₜ aₙₜᵀ, which never leave the chip."""
