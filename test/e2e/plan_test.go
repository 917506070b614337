package e2e

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
)

// What `make chaos` does in which order. This needs no lab, so it is tried without one.

// phase is where in a call the process is killed.
type phase string

const (
	beforeAnswer  phase = "before the answer"
	whileAnswer   phase = "while answering"
	roomIsRung    phase = "room is rung"
	typesPIN      phase = "PIN is typed"         // what was typed is forgotten; the next process asks again
	waitsInLobby  phase = "phone waits in lobby" // until the room lets it in
	talking       phase = "talking"
	onHold        phase = "on hold"
	renegotiates  phase = "client renegotiates"
	phoneHangsUp  phase = "phone hangs up"
	clientHangsUp phase = "client hangs up"
	isTransferred phase = "phone is transferred" // the room sends it on to another one (the one of orders)
	phoneMoves    phase = "phone moves"          // to another room, and hangs up when it hears that it is there
	handsOver     phase = "phone hands over"     // its call to another one (the one of orders)

	// A session timer is in force.
	phoneRefreshes phase = "phone refreshes"  // again and again
	weRefresh      phase = "bridge refreshes" // and the phone takes its time to answer

	// The room calls a phone.
	isOrdered     phase = "call is ordered"
	calleeRings   phase = "called phone rings"
	calleeAnswers phase = "called phone answers"
	calleeTalks   phase = "called phone talks"

	// A call goes through a carrier that the bridge registers with, over TLS and encrypted.
	carrierCalls    phase = "carrier calls"
	carrierTalks    phase = "carrier's phone talks"
	carrierIsCalled phase = "carrier is called"
	carrierHangsUp  phase = "carrier hangs up"
	carrierMoves    phase = "carrier's phone moves" // to another room, as a PBX has it: the call stays up
	carrierPicksUp  phase = "call is picked up"     // by another phone there (Replaces)
)

var phases = []phase{
	beforeAnswer, whileAnswer, roomIsRung, typesPIN, waitsInLobby, talking, onHold, renegotiates, phoneHangsUp, clientHangsUp,
	isTransferred, phoneMoves, handsOver, phoneRefreshes, weRefresh, isOrdered, calleeRings, calleeAnswers, calleeTalks,
	carrierCalls, carrierTalks, carrierIsCalled, carrierHangsUp, carrierMoves, carrierPicksUp,
}

// sooner are the phases that come before all others: a run that is not asked for more rounds, as `make e2e`, has one of each kind.
var sooner = []phase{
	whileAnswer, typesPIN, waitsInLobby, talking, onHold, renegotiates, phoneHangsUp, isTransferred, phoneRefreshes, calleeTalks, carrierTalks,
}

// kill is one round: in which phase, how far in it (0 to 1), and who acts there: hydrogen, js-sdk or both.
type kill struct {
	phase  phase
	moment float64
	who    int
}

// plan spreads the rounds over some phases, in an order and at moments that the seed decides.
func plan(rounds int, seed uint64, some []phase) (all []kill) {
	chance := rand.New(rand.NewPCG(seed, 3401))
	for len(all) < rounds {
		turn := make([]kill, 0, len(some))
		for _, i := range chance.Perm(len(some)) {
			turn = append(turn, kill{some[i], chance.Float64(), chance.IntN(3)})
		}
		slices.SortStableFunc(turn, func(a, b kill) int { return cmp.Compare(lateness(a.phase), lateness(b.phase)) })
		all = append(all, turn...)
	}
	return all[:rounds]
}

func lateness(p phase) int {
	if slices.Contains(sooner, p) {
		return 0
	}
	return 1
}

func TestShortRunOfKillsHasEachKindOfPhase(t *testing.T) {
	kinds := map[string][]phase{
		"answering": {beforeAnswer, whileAnswer}, "PIN": {typesPIN}, "lobby": {waitsInLobby}, "talk": {talking}, "hold": {onHold},
		"renegotiation": {renegotiates}, "hang-up": {phoneHangsUp, clientHangsUp}, "transfer": {isTransferred},
		"session timer": {phoneRefreshes},
		"called phone":  {calleeRings, calleeAnswers, calleeTalks}, "carrier": {carrierCalls, carrierTalks, carrierIsCalled},
	}
	for seed := range uint64(100) {
		short := plan(len(sooner), seed, phases)
		for kind, any := range kinds {
			if !slices.ContainsFunc(short, func(k kill) bool { return slices.Contains(any, k.phase) }) {
				t.Errorf("seed %d: no %s in %v", seed, kind, short)
			}
		}
	}
}

func TestLongRunOfKillsHasAllPhasesEquallyOften(t *testing.T) {
	const turns = 6
	times := map[phase]int{}
	for _, k := range plan(turns*len(phases), 1, phases) {
		times[k.phase]++
	}
	for _, p := range phases {
		if times[p] != turns {
			t.Errorf("%d kills in “%s”, want %d", times[p], p, turns)
		}
	}
	if one := plan(3, 1, []phase{onHold}); len(one) != 3 || one[0].phase != onHold || one[0] == one[1] {
		t.Errorf("a run of one phase is %v", one)
	}
	if !slices.Equal(plan(50, 7, phases), plan(50, 7, phases)) {
		t.Error("a seed does not repeat its run")
	}
}
