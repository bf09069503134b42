"""How the propagator's spectrum is computed; `observables.propagator_spectrum` is what to use."""
