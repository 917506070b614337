package db

import (
	"testing"
	"time"
)

func TestAPINLeadsToOneRoomUntilItIsTakenAway(t *testing.T) {
	stores(t, func(t *testing.T, address string) {
		s, ctx := open(t, address), t.Context()
		add := func(sum, room string) bool {
			t.Helper()
			added, err := s.AddPIN(ctx, PIN{Sum: sum, RoomID: room, CreatedBy: "@anna:example.org", Created: time.UnixMilli(1)})
			if err != nil {
				t.Fatal(err)
			}
			return added
		}
		leads := func(sum, want string) {
			t.Helper()
			if got, err := s.RoomOfPIN(ctx, sum); got != want || err != nil {
				t.Errorf("RoomOfPIN(%s) = %q, %v, want %q", sum, got, err, want)
			}
		}
		leads("a", "")
		if !add("a", "!one") || !add("b", "!one") || !add("c", "!two") {
			t.Error("a new PIN was not added")
		}
		if add("a", "!two") {
			t.Error("a PIN was given to a second room")
		}
		leads("a", "!one")
		leads("c", "!two")
		if n, err := s.PINs(ctx, "!one"); n != 2 || err != nil {
			t.Errorf("PINs = %d, %v, want 2", n, err)
		}
		replace := func(sum string) bool {
			t.Helper()
			added, err := s.ReplacePINs(ctx, PIN{Sum: sum, RoomID: "!one", Created: time.UnixMilli(1)})
			if err != nil {
				t.Fatal(err)
			}
			return added
		}
		if replace("c") {
			t.Error("a PIN of another room took the place of others")
		}
		leads("b", "!one")
		leads("c", "!two")
		if !replace("d") {
			t.Error("a new PIN was not put in the place of others")
		}
		for sum, room := range map[string]string{"a": "", "b": "", "c": "!two", "d": "!one"} {
			leads(sum, room)
		}
		if err := s.DeletePINs(ctx, "!one"); err != nil {
			t.Fatal(err)
		}
		leads("d", "")
		leads("c", "!two")
	})
}
