import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandler;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.regex.Pattern;

/**
 * Sends requests to the Autopay APIs with the token that Vault holds. It caches the token for ttl seconds, or until it
 * expires if Vault can't be reached. Threads can share it.
 */
public final class AutopayClient {
    private final HttpClient http = HttpClient.newHttpClient(); // which follows no redirects
    private final String path;
    private final String rotatePath;
    private String token = "";
    private Instant expires = Instant.EPOCH;
    private long nextRead = System.nanoTime();
    private long nextReplace = System.nanoTime();
    private Exception failure;

    /** Reads path, such as autopay/token. rotatePath is autopay/rotate if the policy allows that, else null. */
    public AutopayClient(String path, String rotatePath) {
        this.path = path;
        this.rotatePath = rotatePath;
    }

    /** After a 401, repeats the request once if Vault has another token. A 403 is not about the token. */
    public <T> HttpResponse<T> send(HttpRequest request, BodyHandler<T> handler) throws IOException, InterruptedException {
        String used = token();
        HttpResponse<T> response = http.send(authorize(request, used), handler);
        String other = response.statusCode() == 401 ? replace(used) : used;
        return other.equals(used) ? response : http.send(authorize(request, other), handler);
    }

    private static HttpRequest authorize(HttpRequest request, String token) {
        return HttpRequest.newBuilder(request, (name, value) -> true).setHeader("Authorization", "Bearer " + token).build();
    }

    /** Returns a live token. */
    public synchronized String token() throws IOException {
        if (System.nanoTime() - nextRead >= 0) {
            read(null);
        }
        if (Instant.now().isAfter(expires)) {
            throw new IOException("no token at " + path + " in Vault: " + failure.getMessage(), failure);
        }
        return token;
    }

    /** Returns the token to use instead of one that the API refused. It is the same one if Vault has no other. */
    public synchronized String replace(String refused) {
        if (token.equals(refused) && System.nanoTime() - nextReplace >= 0) {
            nextReplace = in(10);
            read(refused);
        }
        return token;
    }

    // Keeps the current token if it fails.
    private void read(String refused) {
        try {
            String answer = vault("GET", path);
            // If the API refuses a token in its first tenth, it would most likely refuse the next one too.
            if (field(answer, "access_token").equals(refused) && rotatePath != null
                    && Long.parseLong(field(answer, "ttl")) < 0.9 * Long.parseLong(field(answer, "rotation_period"))) {
                vault("PUT", rotatePath);
                answer = vault("GET", path);
            }
            long pause = Long.parseLong(field(answer, "ttl")) + 1; // by then the engine has replaced the token that was due
            Instant stated = Instant.parse(field(answer, "expire_time"));
            Instant least = Instant.now().plusSeconds(pause); // for a wrong clock: Vault hands out live tokens only
            expires = stated.isAfter(least) ? stated : least;
            token = field(answer, "access_token");
            nextRead = in(pause);
        } catch (IOException | RuntimeException | InterruptedException e) {
            failure = e;
            nextRead = in(10);
            if (e instanceof InterruptedException) {
                Thread.currentThread().interrupt();
            }
        }
    }

    private static long in(long seconds) {
        return System.nanoTime() + Duration.ofSeconds(seconds).toNanos();
    }

    private String vault(String method, String path) throws IOException, InterruptedException {
        String file = System.getenv("VAULT_TOKEN_FILE"); // the sink of a Vault Agent, which renews the token in it
        var request = HttpRequest.newBuilder(URI.create(System.getenv("VAULT_ADDR") + "/v1/" + path))
            .method(method, BodyPublishers.noBody())
            .header("X-Vault-Request", "true")
            .header("X-Vault-Token", file == null ? System.getenv("VAULT_TOKEN") : Files.readString(Path.of(file)).strip())
            // With a live token the engine answers from memory. Otherwise it may have to request one from Autopay.
            .timeout(Duration.ofSeconds(method.equals("GET") && Instant.now().isBefore(expires) ? 2 : 30))
            .build();
        HttpResponse<String> response = http.send(request, BodyHandlers.ofString());
        if (response.statusCode() != 200) {
            throw new IOException(response.statusCode() + " " + response.body());
        }
        return response.body();
    }

    // Vault's response is flat. If you have a JSON library, use it.
    private static String field(String json, String name) throws IOException {
        var field = Pattern.compile("\"" + name + "\":(?:\"([^\"\\\\]+)\"|(\\d+))").matcher(json);
        if (!field.find()) {
            throw new IOException("no " + name);
        }
        return field.group(1) != null ? field.group(1) : field.group(2);
    }
}
