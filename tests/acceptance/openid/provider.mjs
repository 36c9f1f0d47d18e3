// A certified OpenID provider on loopback. Arguments: port, client id, client secret, redirect address.
// PKCE is demanded, claims come from the user-info endpoint, the answer to the browser names the issuer: its defaults.
import { Provider } from 'oidc-provider';

const [port, clientId, clientSecret, redirect] = process.argv.slice(2);

const provider = new Provider(`http://localhost:${port}`, {
  clients: [{
    client_id: clientId,
    client_secret: clientSecret,
    redirect_uris: [redirect],
    grant_types: ['authorization_code'],
    response_types: ['code'],
  }],
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name', 'groups'] },
  findAccount: (ctx, id) => ({
    accountId: id,
    claims: () => ({ sub: id, email: `${id}@example.com`, email_verified: true, name: `Somebody called ${id}`, groups: ['staff'] }),
  }),
  pkce: { required: () => true },
});

provider.listen(Number(port), '127.0.0.1');
