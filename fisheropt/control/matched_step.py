"""The step size for a batch of another size than the rule wanted."""


def matched_step(lr: float, wanted: float, actual: float) -> float:
    """The step that loses no efficiency on `actual` samples where eta on b* = `wanted` would lose none.

    eta' = b eta/(b eta + b* (1 - eta)), the gain b/(n_0 + n + b) of a running mean. With it the recursion
    A_k = V/(n_0 + n_k) holds for any sizes: a short batch at the end of an epoch, a rung of the ladder, and a
    batch that has reached its maximum, from where on it is the step that decays. For small eta it keeps the
    temperature, eta'/b = eta/b*.

    Args:
        lr: eta in [0, 1), in a metric P ~ H^-1.
        wanted: b* that a controller proposed at `lr`.
        actual: b of the batch at hand.
    """
    if not (0.0 <= lr < 1.0 and wanted > 0.0 and actual > 0.0):
        raise ValueError(
            f"matched_step(lr={lr}, wanted={wanted}, actual={actual}): needed is 0 <= lr < 1, a step in a metric "
            "P ~ H^-1, and positive sizes; elsewhere keep the temperature: lr * actual / wanted."
        )
    return actual * lr / (actual * lr + wanted * (1.0 - lr))
