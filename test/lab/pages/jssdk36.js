import * as sdk from "matrix-js-sdk-36";
import { MemoryCryptoStore } from "matrix-js-sdk-36/lib/crypto/store/memory-crypto-store.js";
import { jssdkPeer } from "./jssdk-peer.js";

jssdkPeer("js-sdk 36", sdk, async (login) => {
    // Olm comes from a classic script tag: inside a module it dies with "OLM_OPTIONS is not defined".
    await window.Olm.init({ locateFile: () => "/olm/olm.wasm" });
    const client = sdk.createClient({
        baseUrl: login.homeserver, userId: login.user, deviceId: login.device, accessToken: login.token, cryptoStore: new MemoryCryptoStore(),
    });
    await client.initLegacyCrypto();
    client.setGlobalErrorOnUnknownDevices(false);
    return client;
});
