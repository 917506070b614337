// Package sound turns names of prompts into 8 kHz PCM: "conf-getpin" in Spanish, "number/21" in French.
//
// Names are those of Asterisk's sound sets, so any such set in any language works as it is. A sound is looked for in each
// language of a chain (es_MX, es, en), and in each language at three places: folders of the admin, Debian's packages
// asterisk-core-sounds-*-wav (human voices), and the set that was built in with espeak-ng (scripts/make-sounds.sh). Some
// sounds are no words and always there: "beep", "beeperr", "hold".
//
// "number/N" is not a file but a number said in words, by the rules of the language and the files it has for them.
//
// Callers never see an error: what is missing or broken sounds as a short tone and is counted ([Stats]). What was read is
// kept in memory up to a limit, least lately used first out.
//
// It does not know phones and does not play: [Library.Prompt] gives pieces that a player plays one after the other.
package sound
