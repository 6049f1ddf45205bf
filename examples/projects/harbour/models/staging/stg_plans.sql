-- depends_on: {{ ref('plans') }}
select
    plan_id,
    plan_name,
    monthly_fee_cents,
    unlock_fee_cents,
    included_minutes,
    per_minute_cents
from {{ source('operations', 'plans') }}
