"""The laboratory: the same core in virtual time, cohorts of real daemons, the demo and the benchmarks."""
