"""What positive-congruent training buys: flips at equal error, claims A16 to A19."""
