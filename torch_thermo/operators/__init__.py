"""Matrix-free symmetric operators: second derivatives of a risk, and the propagator's."""

from torch_thermo.operators.base import RiskOperator, SymmetricOperator
from torch_thermo.operators.functional_hessian import FunctionalHessianOperator
from torch_thermo.operators.gauss_newton import GaussNewtonOperator
from torch_thermo.operators.hessian import HessianOperator
from torch_thermo.operators.propagator import PropagatorInverseOperator, PropagatorOperator

__all__ = [
    "FunctionalHessianOperator",
    "GaussNewtonOperator",
    "HessianOperator",
    "PropagatorInverseOperator",
    "PropagatorOperator",
    "RiskOperator",
    "SymmetricOperator",
]
