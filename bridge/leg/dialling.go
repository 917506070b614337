package leg

import "time"

// A phone that somebody in the room wants called. The row comes first, with the minutes that the call may cost; then the ghost
// goes into the room's call, so that the room hears what the line has to say before the answer (announcements, ringback of the
// network); then the row says that the INVITE may be out, and the INVITE goes.

// order begins a call of ours. The shell has prepared it (ports are bound, nothing was sent) and has written its row.
func (m *machine) order() {
	m.Phase, m.Out, m.Phone, m.Room, m.Stored = Dialling, true, Ready, Coming, true
	m.Deadline = m.now.Add(m.Rules.Setup)
	m.do(JoinRoom)
}

// Dialled tells of a leg that calls a phone whether the INVITE was sent, or may have been: that was saved, and the INVITE about
// to go.
func (s State) Dialled() bool { return s.Out && s.Room >= Up }

func (m *machine) dialling(ev Event) {
	switch ev.Kind {
	case RoomJoined:
		if m.Room == Coming {
			m.Room = Up
			m.do(Save)
		}
	case Saved:
		if m.Phone == Ready && m.Room == Up {
			m.Phone = Coming
			m.RingBy = m.now.Add(m.Rules.Ring)
			m.do(DialPhone)
			m.watchRoom()
		}
	case SaveFailed:
		if m.Phone == Ready { // else the phone rings already, and goes on
			m.end(NotStored)
		}
	case PhoneRings:
		if m.Phone == Coming {
			m.report(PhoneRinging)
		}
	case PhoneSounds:
		if m.Phone == Coming && !m.Media {
			m.Media = true
			m.do(StartMedia)
			if m.Told != PhoneRinging {
				m.report(LineHeard)
			}
		}
	case PhoneAnswered:
		if m.Phone == Coming {
			m.pickedUp()
		}
	case PhoneRefused:
		m.Phone = Gone
		m.end(ev.Cause)
	case LineRefused:
		m.goElsewhere(ev.Cause)
	case Rerouted:
		if m.Phone == Absent {
			m.Phone = Ready
			m.do(Save)
		}
	case DialogChanged:
		m.do(Save)
	case CompanyIs:
		m.setCompany(ev.N)
		m.watchRoom()
	case Tick:
		m.diallingTick()
	default:
		m.anyEnd(ev)
	}
}

// goElsewhere has the call placed over the next trunk, unless somebody has heard of it already: a phone that rang, or a room that has
// heard the line. Until it is prepared there is no phone side.
func (m *machine) goElsewhere(why Cause) {
	if m.Phone != Ready && m.Phone != Coming || m.Media || m.Told == PhoneRinging || m.Phone == Coming && !m.now.Before(m.RingBy) {
		m.Phone = Gone
		m.end(why)
		return
	}
	m.Phone = Absent
	m.Deadline = m.now.Add(m.Rules.Setup)
	m.report(AnotherLine)
	m.do(NextLine)
}

// pickedUp begins the talk. Only now does the longest call begin to count.
func (m *machine) pickedUp() {
	m.Phase, m.Phone = Talking, Up
	m.EndBy = m.now.Add(m.Rules.Longest)
	m.do(Save)
	if !m.Media {
		m.Media = true
		m.do(StartMedia)
	}
	m.report(Answered)
	m.watchCompany()
}

// acknowledge confirms the answer of a phone that we called, once the row says that it is up: who dies before that is told of the
// answer again. A row that cannot be written is no reason to let the phone wait until it gives up.
func (m *machine) acknowledge() {
	if m.OwesAck() {
		m.Acked = true
		m.do(AckPhone)
	}
}

func (m *machine) diallingTick() {
	switch {
	case !m.due():
	case m.Phone != Coming:
		m.end(TookTooLong)
	case !m.now.Before(m.RingBy):
		m.end(PhoneSilent)
	default:
		m.end(RoomEmptied)
	}
}

// watchRoom sets the deadline while the phone rings: nobody picks up, or everybody who was there has left. Who ordered the call
// need not be in it yet.
func (m *machine) watchRoom() {
	if m.Phone != Coming {
		return // the set-up's deadline holds
	}
	m.Deadline = m.RingBy
	if m.Company > 0 || !m.Met {
		m.AloneSince = time.Time{}
		return
	}
	if m.AloneSince.IsZero() {
		m.AloneSince = m.now
	}
	if empty := m.AloneSince.Add(m.Rules.Empty); empty.Before(m.Deadline) {
		m.Deadline = empty
	}
}

// report tells the room how its call is getting on, each thing once.
func (m *machine) report(how Cause) {
	if m.Out && m.Told != how {
		m.Told = how
		m.effects = append(m.effects, Effect{Kind: Report, Cause: how})
	}
}

// How a call that the room ordered is getting on, as Report says it; no leg ends with these.
const (
	PhoneRinging Cause = "phone rings"
	LineHeard    Cause = "line is heard"
	AnotherLine  Cause = "another line is tried"
)

// Why a phone that was called is not to be had.
const (
	PhoneBusy     Cause = "phone busy"
	PhoneSilent   Cause = "phone not answered"
	PhoneDeclined Cause = "phone declined"
	PhoneAway     Cause = "phone out of reach"
	NoSuchNumber  Cause = "number not in use"
	NumberChanged Cause = "number changed"
	BadNumber     Cause = "number not complete"
	NetworkBusy   Cause = "telephone network busy"
	NetworkFailed Cause = "telephone network failed"
	NotPermitted  Cause = "trunk does not permit the call"
	NoCommonCodec Cause = "no codec in common"
	Forwarded     Cause = "number forwarded elsewhere"
	TrunkAway     Cause = "trunk not reachable"
)

// WhyRefused says what a refusal means. A cause of the telephone network (Q.850, 0 = none; RFC 6432) tells more than the status
// into which a gateway has put it, unless it is one of those that say nothing.
func WhyRefused(status, q850 int) Cause {
	switch q850 {
	case 1, 2, 3, 26:
		return NoSuchNumber
	case 17:
		return PhoneBusy
	case 18, 19:
		return PhoneSilent
	case 20, 27:
		return PhoneAway
	case 21:
		return PhoneDeclined
	case 22:
		return NumberChanged
	case 28:
		return BadNumber
	case 34, 42, 44, 46, 47:
		return NetworkBusy
	case 29, 50, 52, 54, 55, 57, 63:
		return NotPermitted
	case 58, 65, 79, 88:
		return NoCommonCodec
	case 25, 38, 41, 43:
		return NetworkFailed
	}
	switch status { // RFC 3398 §7.2.6.1, RFC 3261 §21
	case 404, 604:
		return NoSuchNumber
	case 410:
		return NumberChanged
	case 414, 416, 484, 485:
		return BadNumber
	case 486, 600:
		return PhoneBusy
	case 408, 487:
		return PhoneSilent
	case 480:
		return PhoneAway
	case 433, 603, 607, 608:
		return PhoneDeclined
	case 401, 402, 403, 405, 407, 428, 436, 437, 438:
		return NotPermitted
	case 406, 415, 488, 606:
		return NoCommonCodec
	case 503:
		return NetworkBusy
	}
	if status >= 300 && status < 400 {
		return Forwarded
	}
	return NetworkFailed
}

// LineFault tells whether a refusal is about the trunk (it is full, broken, or does not know us), so that another one may bring the
// same call about; else it is about who was called, and holds everywhere. As in [WhyRefused], a cause that tells something counts more than
// the status, but for those that only a phone gives.
func LineFault(status, q850 int) bool {
	if status == 486 || status >= 600 {
		return false
	}
	switch q850 {
	case 2, 3, 25, 34, 38, 41, 42, 44, 46, 47: // no route, no circuit, network out of order
		return true
	case 0, 16, 31, 63, 102, 111, 127: // none, or nothing that tells
	default:
		return false
	}
	switch status {
	case 401, 402, 407, 408, 500, 502, 503, 504, 580:
		return true
	}
	return false
}

// WhyLeft says what the Reason of a phone means that hangs up, or gives up before the answer (RFC 3326): a SIP status or a cause of
// the telephone network, 0 = none. "" is nothing special: somebody put the receiver down.
func WhyLeft(status, q850 int) Cause {
	switch {
	case q850 == 26, q850 == 0 && status == 200: // RFC 3326 §3.1: other forks are cancelled with the status of the one that was taken
		return PhoneElsewhere
	case q850 == 16, q850 == 31, q850 == 0 && (status == 0 || status == 487):
		return ""
	}
	switch why := WhyRefused(status, q850); why {
	case PhoneSilent, PhoneAway, NoSuchNumber, NumberChanged, BadNumber, Forwarded: // about a number that is called
		return ""
	default:
		return why
	}
}
