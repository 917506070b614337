package lab

import (
	"context"
	"fmt"

	"github.com/chromedp/chromedp"
)

// app is the page with the whole hydrogen application.
const app Kind = "app"

// App is the whole hydrogen application, driven by clicks as a person would.
type App struct{ *Client }

// OpenApp opens the application, logs the user in with the password and waits for the list of rooms.
func (l *Lab) OpenApp(ctx context.Context, user *User, voice *Voice) (*App, error) {
	tab, closeTab := chromedp.NewContext(l.browser.ctx, chromedp.WithNewBrowserContext())
	a := &App{&Client{Kind: app, User: user, voice: voice, lab: l, tab: tab, close: closeTab}}
	l.own("application of "+user.Name, func() error { closeTab(); return nil })
	if err := a.login(ctx, l); err != nil {
		return nil, fmt.Errorf("open the application for %s: %w; console: %s", user.Name, err, a.Console())
	}
	return a, nil
}

func (a *App) login(ctx context.Context, l *Lab) error {
	if err := a.navigate(l); err != nil {
		return err
	}
	if err := a.do(ctx, "lab.speak(%s)", "/speech/"+a.voice.Name+".wav"); err != nil {
		return err
	}
	for selector, text := range map[string]string{"#username": a.User.Name, "#password": a.User.Password} {
		if err := a.see(ctx, selector); err != nil {
			return err
		}
		if err := chromedp.Do(a.tab, chromedp.SendKeys(chromedp.CSS(selector), text)); err != nil {
			return err
		}
	}
	if err := a.Click(ctx, ".PasswordLoginView button[type=submit]"); err != nil {
		return err
	}
	return a.see(ctx, ".RoomList a")
}

// see waits until the selector finds something.
func (a *App) see(ctx context.Context, selector string) error {
	return a.do(ctx, `new Promise((ok, no) => {
		const end = Date.now() + 20000;
		const look = () => {
			if (document.querySelector(%s)) ok();
			else if (Date.now() > end) no(new Error("not on the page: " + document.body.innerText.slice(0, 300)));
			else setTimeout(look, 30);
		};
		look();
	})`, selector)
}

// Click waits for an element and clicks it.
func (a *App) Click(ctx context.Context, selector string) error {
	if err := a.see(ctx, selector); err != nil {
		return err
	}
	return a.do(ctx, "document.querySelector(%s).click()", selector)
}

// clickText clicks the menu entry with this text.
func (a *App) clickText(ctx context.Context, selector, text string) error {
	if err := a.see(ctx, selector); err != nil {
		return err
	}
	return a.do(ctx, "[...document.querySelectorAll(%s)].find((e) => e.innerText.includes(%s)).click()", selector, text)
}

// StartCall opens the first room and starts a call in it. The application joins with the camera only.
func (a *App) StartCall(ctx context.Context) error {
	if err := a.Click(ctx, ".RoomList a"); err != nil {
		return err
	}
	if err := a.Click(ctx, ".RoomHeader .room-options"); err != nil {
		return err
	}
	if err := a.clickText(ctx, ".menu button", "Start call"); err != nil {
		return err
	}
	return a.see(ctx, ".CallView")
}

// PressMicrophone switches the microphone on.
func (a *App) PressMicrophone(ctx context.Context) error {
	return a.Click(ctx, ".CallView_mutedMicrophone")
}

// HangUp leaves the call.
func (a *App) HangUp(ctx context.Context) error { return a.Click(ctx, ".CallView_hangup") }
