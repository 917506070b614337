// Package e2e holds the cases in which nothing is faked: the bridge's own binary between a real Synapse on PostgreSQL,
// hydrogen and matrix-js-sdk in Chromium, and baresip. Each case listens: it compares what every side has heard with
// what the others have said.
//
//	make e2e                       # all cases
//	make e2e RUN=TwoPhones         # one
//
// The cases need the build tag e2e; package trunkline/test/lab runs the programs.
package e2e
