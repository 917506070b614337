// Package homeserver is a TEST DOUBLE of a Matrix homeserver: in memory, one process, no federation, no signatures, no
// event graph. It must never serve anybody but tests.
//
// It knows what the bridge, mautrix clients and scripted room members ask a Synapse 1.163 for, and answers with the
// same shapes, error codes and peculiarities: rooms of version 12 whose creator is not in m.room.power_levels,
// state_default 50, to-device messages that stay in the inbox until a later since confirms them, transaction ids that
// are shared by all users of an application service. Anything else is 404 M_UNRECOGNIZED. What it says can be compared
// with the real Synapse: conformance_test.go asks both the same questions.
//
// It runs on any net.Listener. On the in-memory Net of this package it can live in a testing/synctest bubble:
//
//	hs := homeserver.Start(t, homeserver.Config{})           // in memory; StartLoopback for a real socket
//	alice := hs.User("alice")                                // with a device and an access token
//	room := hs.Room(alice.UserID, homeserver.CallRoom())     // members may send call events
//	as := hs.AppService(registration, hs.Net().Client())     // transactions are pushed to registration.URL
//
// Bad days are ordered with Break, LoseWakeUps and LoseTransactions. What happened is read with Requests, State,
// Timeline and ToDevice.
package homeserver
