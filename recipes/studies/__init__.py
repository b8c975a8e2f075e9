"""Studies: experiments that put numbers beside the expected ones; one module each, enrolled by an experiment's yaml."""
