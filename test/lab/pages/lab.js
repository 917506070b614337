// The ears and the mouth of a page. Injected before the page's own scripts, so that no client sees the real devices:
// the microphone plays a speech file for ever, and every remote audio track is written down as PCM with the time of
// its first sample. One AudioContext serves both, hence one clock per page.
(() => {
    if (window.lab || !window.RTCPeerConnection) return;

    const RATE = 48000;
    const KEEP_SECONDS = 150; // per tap; older sound is forgotten
    const context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
    // A stereo destination is the default; phones and clients speak mono.
    const mouth = new MediaStreamAudioDestinationNode(context, { channelCount: 1, channelCountMode: "explicit" });
    const realGetUserMedia = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    const connections = [];
    const taps = [];
    let voice = null;

    // The context renders in batches right after the audio device asks: the smallest difference between wall clock and
    // context clock over many looks is the moment of rendering. Context time stands still when the machine is too busy
    // to render, so each second of context time has a difference of its own.
    const epochs = [];
    const lookAtClock = () => {
        if (context.state !== "running" || context.currentTime === 0) return;
        const second = Math.floor(context.currentTime);
        epochs[second] = Math.min(epochs[second] ?? Infinity, performance.timeOrigin + performance.now() - context.currentTime * 1000);
    };
    setInterval(lookAtClock, 7);

    // epochAt is the difference that held at that context time, or the nearest known.
    function epochAt(contextSeconds) {
        const second = Math.min(Math.max(0, Math.floor(contextSeconds)), epochs.length - 1);
        for (let d = 0; d < epochs.length; d++) {
            const found = epochs[second - d] ?? epochs[second + d];
            if (found !== undefined) return found;
        }
        return performance.timeOrigin + performance.now() - context.currentTime * 1000;
    }
    const wall = (contextSeconds) => epochAt(contextSeconds) + contextSeconds * 1000;

    navigator.mediaDevices.getUserMedia = async (constraints) => {
        const stream = new MediaStream();
        // A clone, for clients stop their tracks when they leave a call.
        if (constraints.audio) stream.addTrack(mouth.stream.getAudioTracks()[0].clone());
        if (constraints.video) {
            for (const track of (await realGetUserMedia({ video: constraints.video })).getVideoTracks()) stream.addTrack(track);
        }
        return stream;
    };

    // The screen is a canvas on which something moves: headless Chromium has no other.
    navigator.mediaDevices.getDisplayMedia = async () => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [320, 180];
        const pen = canvas.getContext("2d");
        let frame = 0;
        const timer = setInterval(() => {
            pen.fillStyle = `hsl(${(frame++ * 7) % 360} 80% 50%)`;
            pen.fillRect((frame * 5) % 320, 0, 40, 180);
        }, 200);
        const stream = canvas.captureStream(5);
        const [track] = stream.getVideoTracks();
        const stop = track.stop.bind(track);
        track.stop = () => {
            clearInterval(timer);
            stop();
        };
        return stream;
    };

    const RealPeerConnection = window.RTCPeerConnection;
    window.RTCPeerConnection = class extends RealPeerConnection {
        constructor(...args) {
            super(...args);
            connections.push(this);
            this.addEventListener("track", (event) => {
                if (event.track.kind === "audio") listen(event, connections.indexOf(this));
            });
        }

        // Remote tracks do not end when we close the connection ourselves; their taps would run for ever.
        close() {
            super.close();
            const index = connections.indexOf(this);
            for (const tap of taps) if (tap.connection === index) tap.close?.();
        }
    };

    const WORKLET = `
        registerProcessor("tap", class extends AudioWorkletProcessor {
            constructor() { super(); this.chunk = null; this.filled = 0; this.start = 0; }
            process([[channel]]) {
                if (!this.chunk) { this.chunk = new Int16Array(4800); this.filled = 0; this.start = currentFrame; }
                for (let i = 0; i < 128 && this.filled < 4800; i++) {
                    const v = channel ? channel[i] : 0;
                    this.chunk[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(v * 32767)));
                }
                if (this.filled >= 4736) { // 37 quanta: chunks never split a quantum
                    const pcm = this.chunk.slice(0, this.filled);
                    this.port.postMessage({ start: this.start, pcm }, [pcm.buffer]);
                    this.chunk = null;
                }
                return true;
            }
        });`;
    const workletReady = context.audioWorklet.addModule(URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" })));

    async function listen(event, connection) {
        const stream = event.streams[0] ?? new MediaStream([event.track]);
        const tap = { id: taps.length, connection, stream: stream.id, track: event.track.id, since: Date.now(), chunks: [], user: null, device: null };
        taps.push(tap);
        // Chromium: a remote track is silent in WebAudio unless a media element plays it, too.
        const only = new MediaStream([event.track]);
        const element = new Audio();
        element.muted = true;
        element.srcObject = only;
        element.play().catch(() => {});
        tap.element = element;
        await workletReady;
        const source = context.createMediaStreamSource(only);
        const worklet = new AudioWorkletNode(context, "tap", { numberOfInputs: 1, numberOfOutputs: 1, channelCount: 1, channelCountMode: "explicit" });
        worklet.port.onmessage = ({ data }) => {
            tap.chunks.push(data);
            while (tap.chunks.length > 1 && (data.start - tap.chunks[0].start) / RATE > KEEP_SECONDS) tap.chunks.shift();
        };
        source.connect(worklet).connect(new GainNode(context, { gain: 0 })).connect(context.destination);
        const close = () => {
            tap.close = null;
            source.disconnect();
            worklet.disconnect();
            element.srcObject = null;
        };
        event.track.addEventListener("ended", close);
        tap.close = close;
    }

    function base64(pcm) {
        const bytes = new Uint8Array(pcm.buffer, pcm.byteOffset, pcm.byteLength);
        let text = "";
        for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode.apply(null, bytes.subarray(i, i + 0x8000));
        return btoa(text);
    }

    const live = () => connections.filter((c) => c.connectionState === "connected");

    window.lab = {
        context,
        connections,
        taps,

        // speak makes the microphone play a file for ever; the file runs on whether or not a call is up.
        async speak(url) {
            await context.resume();
            const response = await fetch(url);
            if (!response.ok) throw new Error(`voice ${url}: HTTP ${response.status}`);
            const buffer = await context.decodeAudioData(await response.arrayBuffer());
            if (voice) voice.source.stop();
            const source = new AudioBufferSourceNode(context, { buffer, loop: true });
            const at = context.currentTime + 0.05;
            source.connect(mouth);
            source.start(at);
            voice = { source, at, seconds: buffer.duration };
        },

        // voice tells when (wall clock, ms) the file's first sample left the mouth for the first time, by the clock as
        // it is some seconds ago: that is when what is judged now was said.
        voice: () => voice && { startMS: epochAt(context.currentTime - 5) + voice.at * 1000, seconds: voice.seconds },

        // assign names the person behind a stream; clients know it, the peer connection does not.
        assign(stream, user, device) {
            for (const tap of taps) {
                if (tap.stream === stream) {
                    tap.user = user;
                    tap.device = device;
                }
            }
        },

        // heard returns what came in since `sinceMS` (wall clock), one recording per remote track.
        heard(sinceMS = 0) {
            const from = Math.max(0, Math.round(((sinceMS - epochAt(context.currentTime)) / 1000) * RATE));
            return taps.map((tap) => {
                const chunks = tap.chunks.filter((c) => c.start + c.pcm.length > from);
                const out = new Int16Array(chunks.reduce((n, c) => n + c.pcm.length, 0));
                let at = 0;
                let gaps = 0;
                let next = null;
                for (const c of chunks) {
                    if (next !== null && c.start !== next) gaps++;
                    next = c.start + c.pcm.length;
                    out.set(c.pcm, at);
                    at += c.pcm.length;
                }
                return {
                    id: tap.id, connection: tap.connection, stream: tap.stream, user: tap.user ?? "", device: tap.device ?? "",
                    rate: RATE, startMS: chunks.length ? wall(chunks[0].start / RATE) : 0, gaps, pcm: base64(out),
                };
            });
        },

        // levels is the cheap look: the loudest sample of the last half second, per tap.
        levels: () => taps.map((tap) => {
            let peak = 0;
            for (const c of tap.chunks.slice(-5)) for (const v of c.pcm) peak = Math.max(peak, Math.abs(v));
            return { id: tap.id, user: tap.user ?? "", stream: tap.stream, peak };
        }),

        restartICE() {
            for (const connection of live()) connection.restartIce();
        },

        // transports names both ends of each live connection by their ICE user fragments.
        transports: () => live().map((c) => [c.currentLocalDescription, c.currentRemoteDescription].map((d) => /ice-ufrag:(\S+)/.exec(d?.sdp)?.[1]).join(" ")),

        forget() {
            for (const tap of taps) tap.chunks = [];
        },

        async stats() {
            const all = [];
            for (const [index, connection] of connections.entries()) {
                const line = { index, state: connection.connectionState, ice: connection.iceConnectionState, signaling: connection.signalingState };
                if (connection.connectionState !== "closed") {
                    for (const s of (await connection.getStats()).values()) {
                        if (s.type === "inbound-rtp" && s.kind === "audio") {
                            line.in = {
                                packets: s.packetsReceived, lost: s.packetsLost, concealed: s.concealedSamples, total: s.totalSamplesReceived,
                                jitterBufferMS: s.jitterBufferEmittedCount ? Math.round((1000 * s.jitterBufferDelay) / s.jitterBufferEmittedCount) : 0,
                            };
                        }
                        if (s.type === "outbound-rtp" && s.kind === "audio") line.out = { packets: s.packetsSent };
                    }
                }
                all.push(line);
            }
            return all;
        },
    };
})();
