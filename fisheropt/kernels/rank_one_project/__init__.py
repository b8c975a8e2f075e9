"""⟨hₙ, p_k q_kᵀ⟩ = Σₜ (gₙₜ·p_k)(aₙₜ·q_k): g and a are read once, and no hₙ is formed."""
