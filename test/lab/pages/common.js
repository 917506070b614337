// What all pages share: waiting, and a short log of call messages for failure reports.

export async function until(what, probe, seconds = 20) {
    const end = Date.now() + seconds * 1000;
    for (;;) {
        const found = await probe();
        if (found) return found;
        if (Date.now() > end) throw new Error(`waited ${seconds} s for ${what}`);
        await new Promise((done) => setTimeout(done, 25));
    }
}

const lines = [];

// note keeps one line per call message: enough to see who spoke last, short enough for a test's failure message.
export function note(direction, type, user, content, extra = "") {
    const c = content ?? {};
    const parts = [new Date().toISOString().slice(11, 23), direction, type, user];
    if (c.call_id) parts.push(`call=${c.call_id}`);
    if (c.seq !== undefined) parts.push(`seq=${c.seq}`);
    if (c.reason) parts.push(`reason=${c.reason}`);
    if (c.sender_session_id) parts.push(`from=${c.sender_session_id}`);
    if (extra) parts.push(extra);
    lines.push(parts.join(" "));
    if (lines.length > 200) lines.shift();
}

export const messages = () => lines.slice(-60);

// whole keeps the complete content of call messages (SDP and all), for dumps.
const captured = [];
export function capture(direction, type, user, content) {
    captured.push({ at: Date.now(), direction, type, user, content: JSON.parse(JSON.stringify(content)) });
    if (captured.length > 400) captured.shift();
}
export const capturedMessages = () => captured;

window.addEventListener("error", (event) => note("!", "error", String(event.message)));
window.addEventListener("unhandledrejection", (event) => note("!", "rejection", String(event.reason?.stack ?? event.reason).slice(0, 300)));
