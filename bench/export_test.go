package main

// What the benchmarks of the outer test package use too.
var (
	CPU      = cpu
	Transfer = transfer
)
