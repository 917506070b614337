package command

import (
	"fmt"
	"slices"
	"strings"
)

// spec is all there is to know about a command: the help is written from it.
type spec struct {
	verb  Verb
	also  []string
	usage string
	does  string
	more  string
	needs Level
	read  func(*Command, []string) error
}

func specs() []spec {
	const phone = "Without a number the only phone is meant; \"who\" counts them."
	return []spec{
		{
			Call,
			[]string{"dial"},
			"call +49 30 123456", "calls a telephone into this room's call",
			"Write the number with its country, or as you would dial it at home. A SIP address (sip:anna@example.org) works, too, where it is allowed. What happens is told here: ringing, busy, no answer.",
			LevelCall, readCall,
		},
		{HangUp, []string{"hang-up", "bye", "end"}, "hangup [1|all]", "ends a phone's call", phone, LevelManage, readPhone},
		{Who, []string{"list", "status"}, "who", "lists the phones in this room and its lobby", "", LevelView, readNothing},
		{Mute, nil, "mute [1|all]", "mutes a phone", phone + " The caller can unmute with *6.", LevelManage, readPhone},
		{Unmute, nil, "unmute [1|all]", "unmutes a phone", phone, LevelManage, readPhone},
		{
			DTMF,
			[]string{"keys", "digits"},
			"dtmf [@1] 123#", "presses keys on a phone's line",
			"For menus of the other side. A comma waits half a second. Everybody in the room can read the keys: don't send secrets.",
			LevelManage, readDTMF,
		},
		{
			Transfer,
			[]string{"refer"},
			"transfer [@1] +49 30 123456", "sends a phone on to another number, and out of this call",
			"The phone's own line places the call; how it gets on is told here. Not every line can do that. If it fails, the phone stays.",
			LevelCall, readTransfer,
		},
		{
			PIN, nil, "pin [new|off]", "says how to dial into this room, or makes a new PIN",
			"A PIN is shown once, when it is made; what is stored can't be read back. \"new\" makes the old one invalid, \"off\" closes dialling in by PIN.",
			LevelManage, readPIN,
		},
		{
			Admit,
			[]string{"let-in", "accept"},
			"admit", "lets the phones in that wait in the lobby",
			"Whoever may take part in the call may do that. A reaction (✅) to the notice of one phone lets in that one.", LevelView, readNothing,
		},
		{
			Decline,
			[]string{"reject", "deny"},
			"decline", "declines the calls that ring here, and sends phones in the lobby away",
			"Whoever may take part in the call may do that. A reaction (❌) to the notice of one phone declines that one.", LevelView, readNothing,
		},
		{Confirm, []string{"yes"}, "confirm", "confirms your call to an expensive number", "Within one minute, by who asked for the call. A reaction (✅) to the question does the same.", LevelCall, readNothing},
		{Help, []string{"?"}, "help [command]", "explains", "", LevelView, readHelp},
	}
}

func find(word string) *spec {
	word = strings.ToLower(word)
	for _, s := range specs() {
		if word == string(s.verb) || slices.Contains(s.also, word) {
			return &s
		}
	}
	return nil
}

// Needs is the level that a command takes.
func (c Command) Needs() Level {
	if s := find(string(c.Verb)); s != nil {
		return s.needs
	}
	return LevelAdmin
}

// Help explains one command, or lists those that a level may use.
func (g Grammar) Help(about Verb, level Level) string {
	if s := find(string(about)); s != nil {
		text := fmt.Sprintf("%s %s – %s.", g.prefix(), s.usage, s.does)
		if s.more != "" {
			text += "\n" + s.more
		}
		if len(s.also) > 0 {
			text += "\nAlso: " + strings.Join(s.also, ", ") + "."
		}
		if level < s.needs {
			text += "\nYou may not use it here."
		}
		return text
	}
	var lines []string
	for _, s := range specs() {
		if level >= s.needs {
			lines = append(lines, fmt.Sprintf("%s %s – %s", g.prefix(), s.usage, s.does))
		}
	}
	if len(lines) == 0 {
		return "You may not use the telephone here. Ask who runs this bridge."
	}
	return strings.Join(lines, "\n")
}

// Denied tells somebody that he may not.
func (g Grammar) Denied(c Command) string {
	return fmt.Sprintf("You may not use \"%s %s\" here. Ask who runs this bridge.", g.prefix(), c.Verb)
}
