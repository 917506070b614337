package sip

import (
	"bytes"
	"maps"
	"strings"
	"testing"
)

func TestTidy(t *testing.T) {
	for _, tt := range []struct{ name, line, want string }{
		{"nothing to do", "From: \"A  B\" <sip:a@b;x=1>;tag=1", "From: \"A  B\" <sip:a@b;x=1>;tag=1"},
		{"white space round parameters", "t  :  <sip:a@b>  ; tag =  1 ; x", "t: <sip:a@b>;tag=1;x"},
		{"folds", "To:\n <sip:a@b>\n ;\n\ttag\n = 1", "To: <sip:a@b>;tag=1"},
		{"names with spaces", "From:  Bell ,   Alexander   <sip:a@b>", "From: Bell , Alexander <sip:a@b>"},
		{"quotes", `f: "a ; \" b = \\" <sip:a@b> ; tag=1`, `f: "a ; \" b = \\" <sip:a@b>;tag=1`},
		{"a fold in quotes", "f: \"a\n b\" ;tag=1", "f: \"a\n b\";tag=1"},
		{"a quote without end", "f: \"a ; b = c", "f: \"a ; b = c"},
		{"brackets", "Route: < sip:a@b ; lr > , <sip:c>", "Route: < sip:a@b ; lr >,<sip:c>"},
		{"Via", "VIA: SIP / 2.0 /\tUDP   h : 5060 ; branch = z , SIP/2.0/TCP [::1]:5061 ;x", "VIA: SIP/2.0/UDP h:5060;branch=z,SIP/2.0/TCP [::1]:5061;x"},
		{"CSeq", "CSeq: 0009\n   INVITE ", "CSeq: 0009 INVITE"},
		{"other headers stay", "Subject :  a ; b = c\n  d", "Subject :  a ; b = c\n  d"},
		{"no header", "nothing", "nothing"},
	} {
		message := "OPTIONS sip:a SIP/2.0\n" + tt.line + "\nX: y\n\nbody ; x\n"
		want := crlf(strings.Replace(message, tt.line, tt.want, 1))
		if got := string(tidy([]byte(crlf(message)))); got != want {
			t.Errorf("%s: tidy = %q, want %q", tt.name, got, want)
		}
	}
	for _, m := range []string{"", "\r\n", "\r\n\r\n", "a\r\n\r\n", "a\r\n\r\nbody\r\n\r\n", "a", "a\r\nb"} {
		if got := string(tidy([]byte(m))); got != m {
			t.Errorf("tidy(%q) = %q", m, got)
		}
	}
}

func FuzzTidy(f *testing.F) {
	f.Add([]byte(crlf(tortuous)))
	f.Add([]byte(crlf(invite())))
	f.Add([]byte(crlf("OPTIONS sip:x SIP/2.0\nv: \"\n <\\ ; \n\n\nb")))
	f.Fuzz(func(t *testing.T, data []byte) {
		before, ok := readHead(data)
		if !ok {
			return // it is not shown to tidy
		}
		got := tidy(bytes.Clone(data))
		if len(got) > len(data) {
			t.Fatalf("tidy(%q) = %q is longer", data, got)
		}
		if again := tidy(bytes.Clone(got)); !bytes.Equal(again, got) {
			t.Fatalf("tidy(%q) = %q, and again %q", data, got, again)
		}
		after, ok := readHead(got)
		if !ok || !maps.Equal(after.count, before.count) || after.length != before.length || after.method != before.method || after.scheme != before.scheme {
			t.Fatalf("tidy(%q) = %q is another message", data, got)
		}
		if !bytes.Equal(got[after.bodyAt:], data[before.bodyAt:]) {
			t.Fatalf("tidy(%q) = %q has another body", data, got)
		}
	})
}
