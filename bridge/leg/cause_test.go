package leg

import "testing"

// The causes of the telephone network (ITU-T Q.850), as trunks give them to calls of ours and as we give them to phones.
func TestCausesOfTheTelephoneNetwork(t *testing.T) {
	for want, codes := range map[Cause][]int{
		NoSuchNumber:  {1, 2, 3, 26},
		PhoneBusy:     {17},
		PhoneSilent:   {18, 19},
		PhoneAway:     {20, 27},
		PhoneDeclined: {21},
		NumberChanged: {22},
		BadNumber:     {28},
		NetworkBusy:   {34, 42, 44, 46, 47},
		NotPermitted:  {29, 50, 52, 54, 55, 57, 63},
		NoCommonCodec: {58, 65, 79, 88},
		NetworkFailed: {25, 38, 41, 43},
	} {
		for _, code := range codes {
			for _, status := range []int{486, 500, 603} { // the gateway's status says less
				if got := WhyRefused(status, code); got != want {
					t.Errorf("WhyRefused(%d, Q.850 %d) = %q, want %q", status, code, got, want)
				}
			}
		}
	}
	for _, code := range []int{0, 16, 31, 102, 111, 127} { // these say nothing of their own: the status does
		for status, want := range map[int]Cause{486: PhoneBusy, 404: NoSuchNumber, 603: PhoneDeclined, 480: PhoneAway, 504: NetworkFailed} {
			if got := WhyRefused(status, code); got != want {
				t.Errorf("WhyRefused(%d, Q.850 %d) = %q, want %q", status, code, got, want)
			}
		}
	}
	for code, causes := range map[int][]Cause{
		1:  {NoSuchRoom},
		16: {"", RoomEmptied, EndedInRoom, HungUp, Moved, Transferred, SwitchedOff, LeftByKey, PhoneLeft, Cancelled},
		19: {NobodyAnswered, PhoneSilent},
		21: {Declined, WrongPIN},
		41: {PhoneLost, RoomLost, NoHomeserver, NotStored, ProcessDied, PINFailed, ShuttingDown},
		42: {Busy},
		57: {NoRights}, 102: {LongestReached, NobodyCame, TookTooLong, NoPIN, NotAdmitted},
	} {
		for _, cause := range causes {
			if got, text := cause.Q850(); got != code || text == "" {
				t.Errorf("%q.Q850() = %d %q, want %d", cause, got, text, code)
			}
		}
	}
}

func TestReasonOfAPhoneThatLeaves(t *testing.T) {
	for _, tt := range []struct {
		status, q850 int
		want         Cause
	}{
		{0, 0, ""},
		{0, 16, ""},
		{0, 31, ""},
		{487, 0, ""},
		{0, 19, ""}, // it has rung for long enough
		{408, 0, ""},
		{200, 0, PhoneElsewhere}, // RFC 3326 §3.1
		{0, 26, PhoneElsewhere},  // non-selected user clearing
		{600, 0, PhoneBusy},
		{0, 17, PhoneBusy},
		{603, 0, PhoneDeclined},
		{0, 21, PhoneDeclined},
		{503, 0, NetworkBusy},
		{0, 42, NetworkBusy},
		{0, 34, NetworkBusy},
		{500, 0, NetworkFailed},
		{0, 38, NetworkFailed},
		{0, 41, NetworkFailed},
		{0, 102, NetworkFailed}, // recovery on timer expiry
		{0, 127, NetworkFailed},
		{402, 0, NotPermitted}, // no credit left
		{0, 88, NoCommonCodec},
	} {
		if got := WhyLeft(tt.status, tt.q850); got != tt.want {
			t.Errorf("WhyLeft(%d, Q.850 %d) = %q, want %q", tt.status, tt.q850, got, tt.want)
		}
	}
}

func TestAnotherLineIsTriedOnlyWhereTheLineIsAtFault(t *testing.T) {
	for _, c := range []struct {
		status, q850 int
		want         bool
	}{
		{503, 0, true},
		{500, 0, true},
		{502, 0, true},
		{504, 0, true},
		{408, 0, true},
		{401, 0, true},
		{407, 0, true},
		{402, 0, true}, // our account there
		{503, 34, true},
		{503, 31, true},
		{404, 3, true},
		{480, 38, true},
		{404, 0, false},
		{410, 0, false},
		{484, 0, false},
		{480, 0, false},
		{487, 0, false},
		{302, 0, false},
		{403, 0, false},
		{488, 0, false},
		{486, 0, false},
		{600, 0, false},
		{603, 0, false},
		{604, 0, false},
		{486, 41, false},
		{603, 38, false}, // said by a phone, whatever the gateway makes of it
		{503, 17, false},
		{500, 1, false},
		{503, 21, false},
		{408, 19, false}, // the network knows why, the gateway's status does not
	} {
		if got := LineFault(c.status, c.q850); got != c.want {
			t.Errorf("LineFault(%d, Q.850 %d) = %t, want %t", c.status, c.q850, got, c.want)
		}
	}
}
