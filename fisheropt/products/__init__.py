"""Products of a model's matrices with vectors, by torch.func: no matrix is formed and no per-sample gradient kept."""

from fisheropt.products.base import Product
from fisheropt.products.empirical_fisher import EmpiricalFisher
from fisheropt.products.hessian import Hessian
from fisheropt.products.information import information
from fisheropt.products.model_fisher import ModelFisher

__all__ = ["EmpiricalFisher", "Hessian", "ModelFisher", "Product", "information"]
