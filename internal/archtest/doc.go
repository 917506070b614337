// Package archtest holds one test: who may import whom, and what pure packages must not do.
package archtest
