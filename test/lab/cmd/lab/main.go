// Command lab keeps the lab running for a person or for other tests: Synapse on PostgreSQL, the bridge, some users and
// rooms, and the whole hydrogen application for any browser of this machine. It prints who and where, and writes the
// same as lab.json. Ctrl-C ends everything it has started.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"maunium.net/go/mautrix/id"

	"trunkline/test/lab"
)

// description is lab.json.
type description struct {
	Homeserver string        `json:"homeserver"`
	Domain     string        `json:"domain"`
	App        string        `json:"app"`
	SIP        string        `json:"sip"` // host:port, UDP and TCP
	Bot        id.UserID     `json:"bot"`
	Users      []userInLab   `json:"users"`
	Rooms      []roomInLab   `json:"rooms"`
	Bridge     bridgeInLab   `json:"bridge"`
	Files      string        `json:"files"` // folder of configs and logs
	Voices     []voiceInFile `json:"voices"`
}

type userInLab struct {
	UserID   id.UserID   `json:"user_id"`
	Password string      `json:"password"`
	Token    string      `json:"token"`
	DeviceID id.DeviceID `json:"device_id"`
}

type roomInLab struct {
	RoomID    id.RoomID   `json:"room_id"`
	Number    string      `json:"number"` // leads to the room
	Encrypted bool        `json:"encrypted"`
	Members   []id.UserID `json:"members"`
}

type bridgeInLab struct {
	Metrics string `json:"metrics"`
	Log     string `json:"log"`
}

type voiceInFile struct {
	Name string `json:"name"`
	Loop string `json:"loop"` // 48 kHz
	Long string `json:"long"` // 8 kHz, minutes
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	binary := flag.String("bridge", "", "the bridge's `binary`; empty = build it")
	file := flag.String("json", "lab.json", "the `file` that describes the lab")
	flag.Parse()
	fmt.Println("Starting the lab: PostgreSQL, Synapse, the bridge, and pages for your browser. Ctrl-C ends it.")
	l, err := lab.Start(ctx, lab.Options{Pages: true, Bridge: true, Binary: *binary, WellKnown: true, Progress: os.Stdout})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	d, err := furnish(ctx, l)
	if err != nil {
		return err
	}
	content, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(*file, append(content, '\n'), 0o600); err != nil { // holds tokens
		return err
	}
	defer os.Remove(*file)
	tell(d, *file)
	select {
	case <-ctx.Done():
		fmt.Println("\nEnding the lab.")
		return nil
	case <-l.Bridge().Exited():
		return fmt.Errorf("the bridge has ended; its output ends with:\n%s", l.Bridge().LogTail(4000))
	}
}

// furnish makes users and rooms.
func furnish(ctx context.Context, l *lab.Lab) (description, error) {
	d := description{
		Homeserver: l.Homeserver(), Domain: l.Synapse.ServerName(), App: l.App(), SIP: l.SIPAddress(), Bot: l.Bridge().Bot(),
		Bridge: bridgeInLab{Metrics: l.Bridge().Metrics() + "/metrics", Log: l.Bridge().Log()},
		Files:  l.Dir(),
	}
	var users []*lab.User
	for _, name := range []string{"alice", "bob", "carol"} {
		u, err := l.NewUserNamed(ctx, name)
		if err != nil {
			return d, err
		}
		users = append(users, u)
		d.Users = append(d.Users, userInLab{u.UserID, u.Password, u.AccessToken, u.DeviceID})
	}
	for _, encrypted := range []bool{false, true} {
		room, err := l.NewRoom(ctx, lab.RoomOptions{Owner: users[0], Members: users[1:], Encrypted: encrypted})
		if err != nil {
			return d, err
		}
		in := roomInLab{RoomID: room.ID, Number: room.Number, Encrypted: encrypted}
		for _, u := range users {
			in.Members = append(in.Members, u.UserID)
		}
		d.Rooms = append(d.Rooms, in)
	}
	for _, v := range l.Voices() {
		d.Voices = append(d.Voices, voiceInFile{v.Name, v.Loop, v.Long})
	}
	return d, nil
}

func tell(d description, file string) {
	var b strings.Builder
	fmt.Fprintf(&b, "\nThe lab is ready; the same as JSON is in %s.\n\n", file)
	fmt.Fprintf(&b, "  Homeserver   %s (%s)\n", d.Homeserver, d.Domain)
	for _, u := range d.Users {
		fmt.Fprintf(&b, "  User         %s  password %s\n", u.UserID, u.Password)
	}
	for _, r := range d.Rooms {
		kind := "plain"
		if r.Encrypted {
			kind = "encrypted"
		}
		fmt.Fprintf(&b, "  Room         %s  (%s)  dial sip:%s@%s\n", r.RoomID, kind, r.Number, d.SIP)
	}
	fmt.Fprintf(&b, "  Bridge       %s  log %s\n\n", d.Bridge.Metrics, d.Bridge.Log)
	fmt.Fprintf(&b, "1. Open %s in a browser of this machine and log in as alice.\n", d.App)
	fmt.Fprintf(&b, "2. Open the room, press ⋮ and \"Start call\". Hydrogen joins with the camera; press the microphone.\n")
	fmt.Fprintf(&b, "3. With any softphone of this machine (no account, no registration) dial sip:%s@%s.\n\n", d.Rooms[0].Number, d.SIP)
	fmt.Fprintf(&b, "Ctrl-C ends the lab and removes everything.\n")
	fmt.Print(b.String())
}
