"""Σₙ hₙ and every ⟨hₙ, v_k⟩ from the same hₙ = Σₜ gₙₜ aₙₜᵀ, which never leave the chip."""
