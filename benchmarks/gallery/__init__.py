"""The gallery: every generative system of the library, trained on small real data, with pictures and measured figures."""
