import * as sdk from "matrix-js-sdk";
import { jssdkPeer } from "./jssdk-peer.js";

jssdkPeer("js-sdk", sdk, async (login) => {
    const client = sdk.createClient({
        baseUrl: login.homeserver, userId: login.user, deviceId: login.device, accessToken: login.token,
        useE2eForGroupCall: false, // the default fails every call with "Unimplemented"
    });
    if (login.crypto) await client.initRustCrypto({ useIndexedDB: false });
    return client;
});
