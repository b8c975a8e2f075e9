"""A step of torch.optim.SGD against given directions: weight decay, momentum and step in one pass over memory."""
