"Rehearsals: the whole road on real input, with nothing replaced but what lies beyond the network. `make rehearsal` runs them."
